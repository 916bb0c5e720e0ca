//! Speed of the machine on a tiled matrix product with cp.async, ldmatrix and mma, and on scalar f32 work, with and without
//! checks. Prints executed lane instructions a second of the best launch, and where the system tells it, of processor time on as many
//! cores as the emulator uses: what other programs take does not show there.

use std::time::Instant;

use ptx_emu::{Checks, Emulator, EmulatorOptions, Launch, Module};

/// A loop of fused multiply-adds over shared memory, as the f32 kernels have it.
const SCALAR: &str = r#"
.version 7.0
.target sm_80
.address_size 64
.shared .align 16 .b8 tile[8192];
.visible .entry scalar(.param .u64 out)
{
    .reg .pred %p;
    .reg .b32 %r<24>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd0, [out];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, tile;
    shl.b32 %r2, %r0, 4;
    add.s32 %r2, %r1, %r2;
    cvt.rn.f32.u32 %r3, %r0;
    st.shared.v4.f32 [%r2], {%r3, %r3, %r3, %r3};
    bar.sync 0;
    mov.b32 %r4, 0;
    mov.b32 %r5, 0;
loop:
    and.b32 %r6, %r4, 511;
    shl.b32 %r6, %r6, 4;
    add.s32 %r6, %r1, %r6;
    ld.shared.v4.f32 {%r8, %r9, %r10, %r11}, [%r6];
    fma.rn.f32 %r5, %r8, %r3, %r5;
    fma.rn.f32 %r5, %r9, %r3, %r5;
    fma.rn.f32 %r5, %r10, %r3, %r5;
    fma.rn.f32 %r5, %r11, %r3, %r5;
    ex2.approx.ftz.f32 %r12, %r5;
    max.f32 %r13, %r12, %r5;
    add.s32 %r4, %r4, 1;
    setp.lt.u32 %p, %r4, 2000;
    @%p bra loop;
    mov.u32 %r7, %ctaid.x;
    mad.lo.s32 %r7, %r7, 512, %r0;
    mul.wide.u32 %rd1, %r7, 4;
    add.s64 %rd2, %rd0, %rd1;
    st.global.f32 [%rd2], %r13;
    ret;
}
"#;

/// A loop of ldmatrix and mma, as the f16 kernels have it.
const TENSOR: &str = r#"
.version 7.0
.target sm_80
.address_size 64
.shared .align 16 .b8 tile[2048];
.visible .entry tensor(.param .u64 out)
{
    .reg .pred %p;
    .reg .b32 %r<24>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd0, [out];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, tile;
    shl.b32 %r2, %r0, 4;
    add.s32 %r2, %r1, %r2;
    mov.b32 %r3, 0x00010002;
    st.shared.v4.b32 [%r2], {%r3, %r3, %r3, %r3};
    bar.sync 0;
    mov.b32 %r4, 0;
    mov.b32 %r12, 0;
    mov.b32 %r13, 0;
    mov.b32 %r14, 0;
    mov.b32 %r15, 0;
loop:
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r8, %r9, %r10, %r11}, [%r2];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r12, %r13, %r14, %r15}, {%r8, %r9, %r10, %r11}, {%r8, %r9}, {%r12, %r13, %r14, %r15};
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r12, %r13, %r14, %r15}, {%r8, %r9, %r10, %r11}, {%r10, %r11}, {%r12, %r13, %r14, %r15};
    add.s32 %r4, %r4, 1;
    setp.lt.u32 %p, %r4, 1000;
    @%p bra loop;
    mov.u32 %r7, %ctaid.x;
    mad.lo.s32 %r7, %r7, 128, %r0;
    mul.wide.u32 %rd1, %r7, 4;
    add.s64 %rd2, %rd0, %rd1;
    st.global.f32 [%rd2], %r12;
    ret;
}
"#;

/// Tiles that all CTAs read, and rows that each writes: global memory in pieces of 16 bytes, as kernels without cp.async touch it.
const MEMORY: &str = r#"
.version 7.0
.target sm_80
.address_size 64
.visible .entry memory(.param .u64 out)
{
    .reg .pred %p;
    .reg .b32 %r<24>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd0, [out];
    mov.u32 %r0, %tid.x;
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd1, %r0, 16;
    mad.wide.u32 %rd2, %r1, 65536, %rd0;
    add.s64 %rd2, %rd2, 65536;
    add.s64 %rd2, %rd2, %rd1;
    add.s64 %rd1, %rd0, %rd1;
    mov.b32 %r4, 0;
loop:
    and.b32 %r5, %r4, 31;
    mul.wide.u32 %rd3, %r5, 2048;
    add.s64 %rd4, %rd1, %rd3;
    ld.global.v4.b32 {%r8, %r9, %r10, %r11}, [%rd4];
    add.s64 %rd5, %rd2, %rd3;
    st.global.v4.b32 [%rd5], {%r8, %r9, %r10, %r11};
    add.s32 %r4, %r4, 1;
    setp.lt.u32 %p, %r4, 256;
    @%p bra loop;
    ret;
}
"#;

/// Seconds that this process has spent on processors.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Fields 14 and 15 of proc(5), user and system time, counted from the state behind the name; ticks of a hundredth of a second.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

fn measure(name: &str, ptx: &str, threads: u32, label: &str, checks: Checks) -> f64 {
    let module = Module::parse(ptx).expect("the benchmark's PTX loads");
    let device = Emulator::new(EmulatorOptions::default().with_checks(checks));
    // A tile of 64 KiB and 64 KiB for each CTA.
    let out = device.alloc(65 << 16).expect("it fits");
    device.fill(out, 0, 1 << 16).expect("it is there");
    let launch = Launch::new([64, 1, 1], [threads, 1, 1]).with_ptr(out);
    let mut best = 0f64;
    let (mut flops, mut executed) = (0, 0);
    let before = cpu_seconds();
    for _ in 0..10 {
        let start = Instant::now();
        let report = device.launch(&module, name, &launch).expect("the benchmark runs");
        flops = report.counters.tensor_flops;
        executed += report.counters.lane_instructions;
        best = best.max(report.counters.lane_instructions as f64 / start.elapsed().as_secs_f64());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let of_cpu = match (before, cpu_seconds()) {
        (Some(before), Some(after)) if after > before => {
            format!("{:8.1} by processor time", cores as f64 * executed as f64 / (after - before) / 1e6)
        }
        _ => String::new(),
    };
    println!(
        "{name:8} {label:24} {:8.1} million lane instructions a second, {of_cpu}; {flops} tensor operations",
        best / 1e6
    );
    best
}

fn main() {
    for (name, ptx, threads) in [("scalar", SCALAR, 512), ("tensor", TENSOR, 128), ("memory", MEMORY, 128)] {
        let none = measure(name, ptx, threads, "no checks", Checks::none());
        let mut one = Checks::none();
        one.uninitialized = true;
        measure(name, ptx, threads, "uninitialized", one);
        one = Checks::none();
        one.races = true;
        measure(name, ptx, threads, "races", one);
        let all = measure(name, ptx, threads, "all checks", Checks::all());
        println!("{name:8} all checks cost {:.2} times the time of none", none / all);
    }
}
