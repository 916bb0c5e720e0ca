//! What kernels ask of the host: `printf` and `assert`.

use ptx_emu::*;

const SEEDS: u64 = 20;

/// `printf` and `assert` as nvcc compiles them.
const HOST: &str = r#"
.version 8.0
.target sm_80
.address_size 64
.extern .func (.param .b32 func_retval0) vprintf(.param .b64 vprintf_param_0, .param .b64 vprintf_param_1);
.extern .func __assertfail
(
    .param .b64 __assertfail_param_0, .param .b64 __assertfail_param_1, .param .b32 __assertfail_param_2,
    .param .b64 __assertfail_param_3, .param .b64 __assertfail_param_4
);
.global .align 1 .b8 $str[24] = {37, 100, 32, 37, 46, 50, 102, 32, 37, 115, 124, 37, 51, 99, 32, 37, 108, 120, 37, 37, 10, 0};
.global .align 1 .b8 $str$1[6] = {104, 101, 108, 108, 111, 0};
.global .align 1 .b8 __unnamed_1[2] = {107, 0};
.visible .entry k(.param .u64 words)
{
    .local .align 8 .b8 __local_depot0[40];
    .reg .b64 %SP, %SPL;
    .reg .pred %p<3>;
    .reg .b32 %r<9>;
    .reg .f64 %fd<2>;
    .reg .b64 %rd<12>;
    mov.u64 %SPL, __local_depot0;
    cvta.local.u64 %SP, %SPL;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    add.u64 %rd1, %SP, 0;
    add.u64 %rd2, %SPL, 0;
    mad.lo.s32 %r3, %r2, 100, %r1;
    st.local.u32 [%rd2], %r3;
    mov.f64 %fd1, 0d3FF4000000000000;
    st.local.f64 [%rd2+8], %fd1;
    mov.u64 %rd3, $str$1;
    cvta.global.u64 %rd4, %rd3;
    st.local.u64 [%rd2+16], %rd4;
    mov.u32 %r4, 65;
    st.local.u32 [%rd2+24], %r4;
    mov.u64 %rd5, 0xdeadbeef01;
    st.local.u64 [%rd2+32], %rd5;
    mov.u64 %rd6, $str;
    cvta.global.u64 %rd7, %rd6;
    { // callseq 0, 0
    .reg .b32 temp_param_reg;
    .param .b64 param0;
    st.param.b64 [param0+0], %rd7;
    .param .b64 param1;
    st.param.b64 [param1+0], %rd1;
    .param .b32 retval0;
    call.uni (retval0), vprintf, (param0, param1);
    ld.param.b32 %r5, [retval0+0];
    } // callseq 0
    setp.eq.s32 %p1, %r5, 5;
    setp.ne.s32 %p2, %r3, FAILING;
    and.pred %p1, %p1, %p2;
    @%p1 bra DONE;
    cvta.global.u64 %rd8, %rd3;
    mov.u64 %rd9, __unnamed_1;
    cvta.global.u64 %rd10, %rd9;
    {
    .param .b64 param0;
    st.param.b64 [param0+0], %rd8;
    .param .b64 param1;
    st.param.b64 [param1+0], %rd10;
    .param .b32 param2;
    st.param.b32 [param2+0], 42;
    .param .b64 param3;
    st.param.b64 [param3+0], %rd10;
    .param .b64 param4;
    st.param.b64 [param4+0], 1;
    call.uni __assertfail, (param0, param1, param2, param3, param4);
    }
DONE:
    ret;
}
"#;

#[test]
fn kernels_print_and_assert() {
    let run = |failing: &str, text: &str, seed: u64| {
        let m = Module::parse(&text.replace("FAILING", failing)).unwrap_or_else(|e| panic!("{e}"));
        let e = Emulator::default();
        let launch = Launch::new([3, 1, 1], [33, 1, 1]).with_ptr(0).with_seed(seed);
        let result = e.launch(&m, "k", &launch);
        let printed = e.take_printed();
        assert!(e.take_printed().is_empty());
        (result, printed)
    };
    for seed in 0..SEEDS {
        let (result, printed) = run("-1", HOST, seed);
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(printed.len(), 99);
        for (i, p) in printed.iter().enumerate() {
            let (cta, thread) = (p.cta[0], p.thread);
            assert_eq!(p.text, format!("{} 1.25 hello|  A deadbeef01%\n", 100 * cta + thread));
            assert_eq!(cta, i as u32 / 33);
        }
        let (result, printed) = run("132", HOST, seed);
        let error = result.unwrap_err();
        let f = error.fault().unwrap();
        assert_eq!((f.kind, f.cta, f.warp, f.lane), (FaultKind::AssertionFailed, [1, 0, 0], 1, Some(0)));
        assert!(f.detail.contains("k:42: k: `hello` does not hold"), "{f}");
        assert!(printed.iter().any(|p| p.text.starts_with("132 ")));
    }
    // What is printed must be written.
    let (result, _) = run("-1", &HOST.replace("st.local.u32 [%rd2], %r3;", ""), 0);
    assert_eq!(result.unwrap_err().fault().unwrap().kind, FaultKind::UninitializedRegister);
    let (result, _) = run("-1", &HOST.replace("{37, 100,", "{37, 113,"), 0);
    let error = result.unwrap_err();
    assert!(error.fault().is_some_and(|f| f.kind == FaultKind::Unsupported && f.detail.contains("%q")), "{error}");
}
