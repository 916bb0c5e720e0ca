//! Hand-written kernels: each correct as it stands, and broken in known ways by the mutation tests.

/// Head of every module.
pub(crate) const HEAD_80: &str = ".version 7.8\n.target sm_80\n.address_size 64\n";
/// Head of modules with Hopper instructions.
pub(crate) const HEAD_90A: &str = ".version 8.0\n.target sm_90a\n.address_size 64\n";

/// 64 threads reverse 64 integers through shared memory; two warps, so that a barrier is needed.
pub(crate) const REVERSE: &str = r#"
.shared .align 4 .b8 tile[256];
.visible .entry reverse(.param .u64 in, .param .u64 out, .param .u32 n)
{
    .reg .pred %p<3>;
    .reg .b32 %r<12>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd0, [in];
    ld.param.u64 %rd1, [out];
    ld.param.u32 %r0, [n];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, tile;
    shl.b32 %r3, %r1, 2;
    add.s32 %r4, %r2, %r3;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd0, %rd2;
    setp.ge.u32 %p0, %r1, %r0;
    mov.b32 %r5, 0;
    @!%p0 ld.global.u32 %r5, [%rd3];
    st.shared.u32 [%r4], %r5;
    bar.sync 0;
    sub.s32 %r6, 63, %r1;
    shl.b32 %r7, %r6, 2;
    add.s32 %r8, %r2, %r7;
    ld.shared.u32 %r9, [%r8];
    add.s64 %rd4, %rd1, %rd2;
    @!%p0 st.global.u32 [%rd4], %r9;
    ret;
}
"#;

/// 64 threads add up tiles of 64 x 16 bytes, two stages of cp.async; each reads its neighbour's copy.
pub(crate) const PIPELINE: &str = r#"
.extern .shared .align 16 .b8 stages[];
.visible .entry pipeline(.param .u64 in, .param .u64 out, .param .u32 tiles)
{
    .reg .pred %p<4>;
    .reg .b32 %r<24>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd0, [in];
    ld.param.u64 %rd1, [out];
    ld.param.u32 %r0, [tiles];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, stages;
    shl.b32 %r3, %r1, 4;
    add.s32 %r4, %r2, %r3;
    mul.wide.u32 %rd2, %r1, 16;
    add.s64 %rd3, %rd0, %rd2;
    mov.b32 %r5, 16;
    cp.async.cg.shared.global [%r4], [%rd3], 16, %r5;
    cp.async.commit_group;
    xor.b32 %r6, %r1, 63;
    shl.b32 %r7, %r6, 4;
    add.s32 %r8, %r2, %r7;
    mov.b32 %r9, 0;
    mov.b32 %r10, 0;
    mov.b32 %r11, 0;
loop:
    add.s64 %rd3, %rd3, 1024;
    add.s32 %r12, %r10, 1;
    xor.b32 %r13, %r11, 1024;
    setp.ge.u32 %p0, %r12, %r0;
    @%p0 bra last;
    add.s32 %r14, %r4, %r13;
    cp.async.cg.shared.global [%r14], [%rd3], 16;
last:
    cp.async.commit_group;
    cp.async.wait_group 1;
    bar.sync 0;
    add.s32 %r15, %r8, %r11;
    ld.shared.v4.u32 {%r16, %r17, %r18, %r19}, [%r15];
    add.s32 %r9, %r9, %r16;
    add.s32 %r9, %r9, %r19;
    bar.sync 0;
    mov.b32 %r11, %r13;
    mov.b32 %r10, %r12;
    setp.lt.u32 %p1, %r10, %r0;
    @%p1 bra loop;
    mul.wide.u32 %rd4, %r1, 4;
    add.s64 %rd5, %rd1, %rd4;
    st.global.u32 [%rd5], %r9;
    ret;
}
"#;

/// One warp sums 32 integers by shuffles, and rotates them through shared memory with a warp barrier.
pub(crate) const WARP: &str = r#"
.shared .align 4 .b8 lanes[128];
.visible .entry warp(.param .u64 in, .param .u64 out)
{
    .reg .pred %p<4>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd0, [in];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd0, %rd2;
    ld.global.u32 %r2, [%rd3];
    mov.b32 %r3, 0;
    add.s32 %r3, %r3, %r2;
    setp.gt.u32 %p0, %r1, 15;
    shfl.sync.bfly.b32 %r4, %r3, 16, 0x1f, 0xffffffff;
    add.s32 %r3, %r3, %r4;
    shfl.sync.bfly.b32 %r4, %r3, 8, 0x1f, 0xffffffff;
    add.s32 %r3, %r3, %r4;
    shfl.sync.bfly.b32 %r4, %r3, 4, 0x1f, 0xffffffff;
    add.s32 %r3, %r3, %r4;
    shfl.sync.bfly.b32 %r4, %r3, 2, 0x1f, 0xffffffff;
    add.s32 %r3, %r3, %r4;
    shfl.sync.bfly.b32 %r4, %r3, 1, 0x1f, 0xffffffff;
    add.s32 %r3, %r3, %r4;
    mov.u32 %r5, lanes;
    shl.b32 %r6, %r1, 2;
    add.s32 %r7, %r5, %r6;
    st.shared.u32 [%r7], %r2;
    bar.warp.sync 0xffffffff;
    add.s32 %r8, %r1, 1;
    and.b32 %r8, %r8, 31;
    shl.b32 %r8, %r8, 2;
    add.s32 %r9, %r5, %r8;
    ld.shared.u32 %r10, [%r9];
    add.s32 %r11, %r3, %r10;
    add.s64 %rd4, %rd1, %rd2;
    st.global.u32 [%rd4], %r11;
    ret;
}
"#;

/// Two warps fill a 16 x 16 tile of f16 in shared memory, the first multiplies it with its own transpose.
pub(crate) const MMA: &str = r#"
.shared .align 16 .b8 tile[512];
.visible .entry mma(.param .u64 in, .param .u64 out)
{
    .reg .pred %p<4>;
    .reg .b32 %r<24>;
    .reg .f32 %f<8>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd0, [in];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, tile;
    mul.wide.u32 %rd2, %r1, 8;
    add.s64 %rd3, %rd0, %rd2;
    ld.global.v2.u32 {%r3, %r4}, [%rd3];
    shl.b32 %r5, %r1, 3;
    add.s32 %r6, %r2, %r5;
    st.shared.v2.u32 [%r6], {%r3, %r4};
    bar.sync 0;
    setp.gt.u32 %p0, %r1, 31;
    @%p0 bra done;
    and.b32 %r7, %r1, 15;
    shl.b32 %r7, %r7, 5;
    shr.u32 %r8, %r1, 4;
    shl.b32 %r8, %r8, 4;
    add.s32 %r9, %r2, %r7;
    add.s32 %r9, %r9, %r8;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r9];
    mov.f32 %f0, 0f00000000;
    mov.f32 %f1, 0f00000000;
    mov.f32 %f2, 0f00000000;
    mov.f32 %f3, 0f00000000;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r10, %r11, %r12, %r13}, {%r10, %r12}, {%f0, %f1, %f2, %f3};
    mul.wide.u32 %rd4, %r1, 16;
    add.s64 %rd5, %rd1, %rd4;
    st.global.v4.f32 [%rd5], {%f0, %f1, %f2, %f3};
done:
    ret;
}
"#;

/// Every CTA adds its part to a cell; the last one to arrive adds up the cells.
pub(crate) const LAST_CTA: &str = r#"
.global .align 4 .u32 arrived = 0;
.visible .entry last_cta(.param .u64 cells, .param .u64 out)
{
    .reg .pred %p<4>;
    .reg .b32 %r<16>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd0, [cells];
    ld.param.u64 %rd1, [out];
    mov.u32 %r0, %tid.x;
    setp.ne.u32 %p0, %r0, 0;
    @%p0 bra done;
    mov.u32 %r1, %ctaid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd0, %rd2;
    add.s32 %r2, %r1, 100;
    st.global.u32 [%rd3], %r2;
    membar.gl;
    atom.global.add.u32 %r3, [arrived], 1;
    mov.u32 %r4, %nctaid.x;
    add.s32 %r4, %r4, -1;
    setp.ne.u32 %p1, %r3, %r4;
    @%p1 bra done;
    membar.gl;
    mov.b32 %r5, 0;
    mov.b32 %r6, 0;
sum:
    ld.global.u32 %r7, [%rd0];
    add.s32 %r5, %r5, %r7;
    add.s64 %rd0, %rd0, 4;
    add.s32 %r6, %r6, 1;
    setp.le.u32 %p2, %r6, %r4;
    @%p2 bra sum;
    st.global.u32 [%rd1], %r5;
done:
    ret;
}
"#;

/// One warpgroup: TMA brings a 64 x 64 tile A and an 8 x 64 tile B of bf16, wgmma multiplies, a bulk copy stores A B^T.
pub(crate) const HOPPER: &str = r#"
.extern .shared .align 1024 .b8 smem[];
.visible .entry hopper(.param .u64 maps, .param .u64 out)
{
    .reg .pred %p<4>;
    .reg .b32 %r<32>;
    .reg .f32 %f<8>;
    .reg .b64 %rd<16>;
    ld.param.u64 %rd0, [maps];
    ld.param.u64 %rd1, [out];
    add.s64 %rd2, %rd0, 128;
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, smem;
    add.s32 %r3, %r2, 8192;
    add.s32 %r4, %r2, 9216;
    add.s32 %r5, %r2, 10240;
    mov.b32 %r6, 0;
    setp.ne.u32 %p0, %r1, 0;
    @%p0 bra ready;
    mbarrier.init.shared::cta.b64 [%r4], 1;
    fence.mbarrier_init.release.cluster;
ready:
    bar.sync 0;
    @%p0 bra wait;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r4], 9216;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd0, {%r6, %r6}], [%r4];
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r3], [%rd2, {%r6, %r6}], [%r4];
wait:
    mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r4], 0;
    @!%p1 bra wait;
    shr.u32 %r7, %r2, 4;
    cvt.u64.u32 %rd3, %r7;
    or.b64 %rd3, %rd3, 0x4000004000010000;
    shr.u32 %r8, %r3, 4;
    cvt.u64.u32 %rd4, %r8;
    or.b64 %rd4, %rd4, 0x4000004000010000;
    setp.eq.u32 %p2, %r1, -1;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd3, %rd4, %p2, 1, 1, 0, 0;
    setp.ne.u32 %p2, %r1, -1;
    add.s64 %rd5, %rd3, 2;
    add.s64 %rd6, %rd4, 2;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd5, %rd6, %p2, 1, 1, 0, 0;
    add.s64 %rd5, %rd3, 4;
    add.s64 %rd6, %rd4, 4;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd5, %rd6, %p2, 1, 1, 0, 0;
    add.s64 %rd5, %rd3, 6;
    add.s64 %rd6, %rd4, 6;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0, %f1, %f2, %f3}, %rd5, %rd6, %p2, 1, 1, 0, 0;
    wgmma.commit_group.sync.aligned;
    wgmma.wait_group.sync.aligned 0;
    // Fragment to row-major f32 [64, 8].
    shr.u32 %r9, %r1, 5;
    shl.b32 %r9, %r9, 4;
    and.b32 %r10, %r1, 31;
    shr.u32 %r11, %r10, 2;
    add.s32 %r9, %r9, %r11;
    and.b32 %r12, %r1, 3;
    shl.b32 %r13, %r9, 5;
    shl.b32 %r14, %r12, 3;
    add.s32 %r13, %r13, %r14;
    add.s32 %r15, %r5, %r13;
    st.shared.v2.f32 [%r15], {%f0, %f1};
    st.shared.v2.f32 [%r15+256], {%f2, %f3};
    fence.proxy.async.shared::cta;
    bar.sync 0;
    @%p0 bra done;
    cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r5], 2048;
    cp.async.bulk.commit_group;
    cp.async.bulk.wait_group 0;
    mbarrier.inval.shared::cta.b64 [%r4];
done:
    ret;
}
"#;

/// A warp whose lanes all read a note, and one of them frees it for the other warp; what the lanes make of it leaves through one
/// lane's bulk store.
pub(crate) const ELECT: &str = r#"
.shared .align 128 .b8 stage[128];
.shared .align 8 .b8 full[8];
.shared .align 8 .b8 empty[8];
.shared .align 4 .b8 note[4];
.visible .entry elect(.param .u64 out)
{
    .reg .pred %p<6>;
    .reg .b32 %r<24>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd0, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, full;
    mov.u32 %r3, empty;
    mov.u32 %r4, note;
    mov.u32 %r5, stage;
    and.b32 %r6, %r1, 31;
    setp.eq.u32 %p0, %r6, 0;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra ready;
    mbarrier.init.shared::cta.b64 [%r2], 1;
    mbarrier.init.shared::cta.b64 [%r3], 1;
ready:
    bar.sync 0;
    mov.b32 %r7, 0;
    setp.gt.u32 %p2, %r1, 31;
    @%p2 bra write;
read:
    and.b32 %r8, %r7, 1;
await_full:
    mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], %r8;
    @!%p3 bra await_full;
have_note:
    ld.shared.u32 %r9, [%r4];
    bar.warp.sync 0xffffffff; // before the arrival
    @%p0 mbarrier.arrive.shared::cta.b64 _, [%r3];
    @%p0 cp.async.bulk.wait_group.read 0;
    bar.warp.sync 0xffffffff; // before the overwriting
    add.s32 %r9, %r9, %r6;
    shl.b32 %r10, %r6, 2;
    add.s32 %r10, %r5, %r10;
    st.shared.u32 [%r10], %r9;
    fence.proxy.async.shared::cta;
    bar.warp.sync 0xffffffff; // before the store
    mul.wide.u32 %rd1, %r7, 128;
    add.s64 %rd2, %rd0, %rd1;
    @%p0 cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r5], 128;
    @%p0 cp.async.bulk.commit_group;
    add.s32 %r7, %r7, 1;
    setp.lt.u32 %p4, %r7, 4;
    @%p4 bra read;
    @%p0 cp.async.bulk.wait_group 0;
    ret;
write:
    @!%p0 bra done;
    setp.eq.u32 %p4, %r7, 0;
    @%p4 bra free;
    add.s32 %r8, %r7, 1;
    and.b32 %r8, %r8, 1;
await_empty:
    mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r3], %r8;
    @!%p3 bra await_empty;
free:
    mul.lo.s32 %r9, %r7, 100;
    st.shared.u32 [%r4], %r9;
    mbarrier.arrive.shared::cta.b64 _, [%r2];
    add.s32 %r7, %r7, 1;
    setp.lt.u32 %p4, %r7, 4;
    @%p4 bra write;
done:
    ret;
}
"#;

/// Halves of a warp that exchange 16-bit values, each with a barrier of its own, and then with each other.
pub(crate) const HALVES: &str = r#"
.shared .align 4 .b8 cells[64];
.visible .entry halves(.param .u64 out)
{
    .reg .pred %p<4>;
    .reg .b16 %h<4>;
    .reg .b32 %r<16>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd0, [out];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, cells;
    shl.b32 %r3, %r1, 1;
    add.s32 %r4, %r2, %r3;
    cvt.u16.u32 %h0, %r1;
    st.shared.u16 [%r4], %h0;
    xor.b32 %r5, %r1, 1;
    shl.b32 %r5, %r5, 1;
    add.s32 %r5, %r2, %r5;
    setp.gt.u32 %p0, %r1, 15;
    @%p0 bra high;
    bar.warp.sync 0x0000ffff; // low: written
    ld.shared.u16 %h1, [%r5];
    bar.warp.sync 0x0000ffff; // low: read
    bra both;
high:
    bar.warp.sync 0xffff0000;
    ld.shared.u16 %h1, [%r5];
    bar.warp.sync 0xffff0000;
both:
    ld.shared.u16 %h2, [%r4];
    mul.lo.u16 %h1, %h1, 100;
    add.u16 %h2, %h2, %h1;
    st.shared.u16 [%r4], %h2;
    bar.warp.sync 0xffffffff; // both
    sub.s32 %r6, 31, %r1;
    shl.b32 %r6, %r6, 1;
    add.s32 %r6, %r2, %r6;
    ld.shared.u16 %r7, [%r6];
    mul.wide.u32 %rd1, %r1, 4;
    add.s64 %rd2, %rd0, %rd1;
    st.global.u32 [%rd2], %r7;
    ret;
}
"#;

/// Lanes of a warp that exchange values through global memory.
pub(crate) const EXCHANGE: &str = r#"
.visible .entry exchange(.param .u64 cells, .param .u64 out)
{
    .reg .b32 %r<8>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd0, [cells];
    ld.param.u64 %rd1, [out];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd0, %rd2;
    st.global.u32 [%rd3], %r1;
    bar.warp.sync 0xffffffff;
    xor.b32 %r2, %r1, 31;
    mul.wide.u32 %rd4, %r2, 4;
    add.s64 %rd5, %rd0, %rd4;
    ld.global.u32 %r3, [%rd5];
    add.s64 %rd6, %rd1, %rd2;
    st.global.u32 [%rd6], %r3;
    ret;
}
"#;
