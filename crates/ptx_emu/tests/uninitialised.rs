//! Reads of global memory that nobody wrote, by every instruction that reads it. One thread alone: no race can be told in their place.

use ptx_emu::*;

/// Bytes of the source, the last 4 of which stay unwritten.
const BYTES: u64 = 64;

/// What the body of an entry makes of `%in`, the address of the source. `%in` is aligned to 256 bytes.
fn module(body: &str) -> String {
    format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .u64 source, .param .u64 map)\n{{\n.shared .align 1024 .b8 buffer[1024];\n.shared .align 8 .b64 bar;\n\
         .reg .pred %p;\n.reg .b16 %h;\n.reg .b32 %r<4>, %s, %z;\n.reg .b64 %in, %map, %d<2>;\n\
         ld.param.u64 %in, [source];\nld.param.u64 %map, [map];\nmov.u32 %s, buffer;\nmov.b32 %z, 0;\n{body}\nret;\n}}\n"
    )
}

/// Runs the body over a source whose first `written` bytes somebody wrote.
fn run(body: &str, written: u64, checks: Checks) -> Result<(), EmuError> {
    let text = module(body);
    let module = Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let emulator = Emulator::new(EmulatorOptions::default().with_checks(checks));
    let source = emulator.alloc(BYTES).unwrap();
    emulator.fill(source, 1, written).unwrap();
    let map = emulator.alloc(128).unwrap();
    let spec = TensorMapSpec {
        data_type: TensorDataType::Uint32,
        address: source,
        dims: vec![BYTES / 4],
        strides: vec![],
        box_dims: vec![BYTES as u32 / 4],
        swizzle: Swizzle::None,
        fill: TensorFill::Zero,
    };
    emulator.write(map, TensorMap::encode(&spec).unwrap().as_bytes()).unwrap();
    let launch = Launch::new([1, 1, 1], [1, 1, 1]).with_ptr(source).with_ptr(map);
    emulator.launch(&module, "k", &launch).map(|_| ())
}

/// A load through the mbarrier `bar`, and the wait for it.
fn bulk_load(copy: &str) -> String {
    format!(
        "mbarrier.init.shared.b64 [bar], 1;\nfence.proxy.async;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [bar], 64;\n{copy}\n\
         wait:\nmbarrier.try_wait.parity.shared::cta.b64 %p, [bar], 0;\n@!%p bra wait;"
    )
}

/// A reduction of shared memory, which is written, into the source.
fn bulk_reduction(copy: &str) -> String {
    let stores: String = (0..16).map(|i| format!("st.shared.u32 [buffer+{}], %z;\n", 4 * i)).collect();
    format!("{stores}fence.proxy.async;\n{copy}\ncp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;")
}

/// Every way to read the last bytes of the source.
fn reads() -> Vec<String> {
    let mut bodies: Vec<String> = [
        "ld.global.u8 %h, [%in+63];",
        "ld.global.u16 %h, [%in+62];",
        "ld.global.u32 %r0, [%in+60];",
        "ld.u32 %r0, [%in+60];",
        // The first half of a word, or of a vector, is written.
        "ld.global.u64 %d0, [%in+56];",
        "ld.global.v2.u32 {%r0, %r1}, [%in+56];",
        "ld.global.v2.u64 {%d0, %d1}, [%in+48];",
        "ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%in+48];",
        "ld.global.nc.v4.u32 {%r0, %r1, %r2, %r3}, [%in+48];",
        "ld.volatile.global.u32 %r0, [%in+60];",
        "ld.relaxed.gpu.global.u32 %r0, [%in+60];",
        "ld.acquire.gpu.global.u32 %r0, [%in+60];",
        "atom.global.add.u32 %r0, [%in+60], 1;",
        "atom.global.cas.b32 %r0, [%in+60], 0, 1;",
        "atom.global.max.u64 %d0, [%in+56], %in;",
        "red.global.add.f32 [%in+60], %z;",
        "cp.async.ca.shared.global [%s], [%in+60], 4;\ncp.async.wait_all;",
        "cp.async.cg.shared.global [%s], [%in+48], 16;\ncp.async.wait_all;",
    ]
    .map(str::to_owned)
    .to_vec();
    let loads = [
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%in], 64, [bar];",
        "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%map, {%z}], [bar];",
    ];
    bodies.extend(loads.map(bulk_load));
    let reductions = [
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%in], [%s], 64;",
        "cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.tile.bulk_group [%map, {%z}], [%s];",
    ];
    bodies.extend(reductions.map(bulk_reduction));
    bodies
}

#[test]
fn every_read_of_what_nobody_wrote_is_told() {
    for body in reads() {
        let error = run(&body, BYTES - 4, Checks::all()).expect_err(&body);
        assert_eq!(error.fault().map(|fault| fault.kind), Some(FaultKind::UninitializedGlobal), "{body}: {error}");
        // The same with all of it written, and without the check.
        run(&body, BYTES, Checks::all()).unwrap_or_else(|error| panic!("{body}: {error}"));
        run(&body, BYTES - 4, Checks::none()).unwrap_or_else(|error| panic!("{body}: {error}"));
    }
}

/// The byte that the message names is the first that nobody wrote.
#[test]
fn the_unwritten_byte_is_named() {
    let body = "ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%in+48];";
    for written in [0, 48, 49, 51, 60, 63] {
        let error = run(body, written, Checks::all()).unwrap_err().to_string();
        let byte = format!("byte {} of the allocation of 64 bytes", written.max(48));
        assert!(error.contains(&byte), "{written}: {error}");
    }
}

/// What does not look at the bytes may come first.
#[test]
fn writes_need_nobody_before_them() {
    for body in [
        "st.global.u32 [%in+60], %z;",
        "atom.global.exch.b32 %r0, [%in+60], 1;",
        "ld.global.u32 %r0, [%in+56];",
        "st.global.u32 [%in+60], %z;\nld.global.u32 %r0, [%in+60];",
    ] {
        run(body, BYTES - 4, Checks::all()).unwrap_or_else(|error| panic!("{body}: {error}"));
    }
}
