//! `wgmma` in every type, layout and swizzle.

use std::fmt::Write as _;

use ptx_emu::Swizzle;

use super::super::{Case, Input, Output};
use super::{case, hopper};

/// What a `wgmma` case multiplies.
struct Product {
    /// Types of accumulator, A and B.
    types: [&'static str; 3],
    n: u32,
    swizzle: Swizzle,
    transposed: [bool; 2],
    a_in_registers: bool,
    /// Signs of A and B, and whether the accumulator's old value counts.
    scale: [i32; 2],
    accumulate: bool,
    input: Input,
}

impl Product {
    fn element_bytes(&self) -> u32 {
        match self.types[1] {
            "tf32" => 4,
            "f16" | "bf16" => 2,
            _ => 1,
        }
    }

    /// Bytes of an operand of `mn` rows as the canonical layout packs it, with its leading and stride byte offsets.
    fn layout(&self, mn: u32, mn_major: bool) -> [u32; 3] {
        let span = match self.swizzle {
            Swizzle::None => 16,
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        };
        let e = self.element_bytes();
        let (block, k) = (span * 8, 32 / e);
        let (inner, outer) = if mn_major { (mn, k) } else { (k, mn) };
        let inner_blocks = (inner * e).div_ceil(span);
        let (next_inner, next_outer) = (block, inner_blocks * block);
        let bytes = inner_blocks * outer.div_ceil(8) * block;
        if mn_major && self.swizzle == Swizzle::None {
            [bytes, next_outer, next_inner]
        } else {
            [bytes, next_inner, next_outer]
        }
    }

    fn case(&self) -> Case {
        let [acc_ty, a_ty, b_ty] = self.types;
        let mode = match self.swizzle {
            Swizzle::None => 0u64,
            Swizzle::Bytes128 => 1,
            Swizzle::Bytes64 => 2,
            Swizzle::Bytes32 => 3,
        };
        let descriptor = |[_, leading, stride]: [u32; 3], at: u32| {
            (at as u64 >> 4) + ((leading as u64 >> 4) << 16) + ((stride as u64 >> 4) << 32) + (mode << 62)
        };
        let (a, b) = (self.layout(64, self.transposed[0]), self.layout(self.n, self.transposed[1]));
        let b_at = a[0].next_multiple_of(1024);
        let words = (b_at + b[0]).div_ceil(512);
        let mut body =
            String::from("mov.u32 %t0, %tid.x;\nshl.b32 %t1, %t0, 2;\nmov.u32 %t2, buffer;\nadd.s32 %t3, %t1, %t2;\n");
        // Every word of both operands gets another thread's input.
        for i in 0..words {
            let from = ["%a", "%b", "%c"][i as usize % 3];
            write!(
                body,
                "shfl.sync.bfly.b32 %t4, {from}, {}, 0x1f, 0xffffffff;\n st.shared.u32 [%t3+{}], %t4;\n",
                i % 32,
                512 * i
            )
            .expect("a string takes all");
        }
        let accumulators = self.n / if acc_ty == "f16" { 4 } else { 2 };
        let registers: Vec<String> = (0..accumulators).map(|i| format!("%w{i}")).collect();
        for (i, register) in registers.iter().enumerate() {
            // One, two and minus one in f32 or in pairs of f16.
            let value = match (acc_ty, i % 3) {
                ("f16", 0) => 0x3c00_4000u32,
                ("f16", _) => 0xbc00_3c00,
                (_, 0) => 0x3f80_0000,
                (_, 1) => 0x4000_0000,
                _ => 0xbf80_0000,
            };
            writeln!(body, "mov.b32 {register}, {value};").expect("a string takes all");
        }
        let operand = if self.a_in_registers { "{%a, %b, %c, %t4}" } else { "%la" };
        let [scale_a, scale_b] = self.scale;
        let mut flags = format!("{scale_a}, {scale_b}");
        if self.element_bytes() == 2 {
            if !self.a_in_registers {
                write!(flags, ", {}", self.transposed[0] as u32).expect("a string takes all");
            }
            write!(flags, ", {}", self.transposed[1] as u32).expect("a string takes all");
        }
        write!(
            body,
            "fence.proxy.async;\nbar.sync 0;\nshr.u32 %t2, %t2, 4;\ncvt.u64.u32 %lb, %t2;\nadd.s64 %la, %lb, {};\nadd.s64 %lb, %lb, {};\n\
             setp.{}.u32 %q, %t0, %t0;\nwgmma.fence.sync.aligned;\n\
             wgmma.mma_async.sync.aligned.m64n{}k{}.{acc_ty}.{a_ty}.{b_ty} {{{}}}, {operand}, %lb, %q, {flags};\n\
             wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n",
            descriptor(a, 0) as i64,
            descriptor(b, b_at) as i64,
            if self.accumulate { "eq" } else { "ne" },
            self.n,
            32 / self.element_bytes(),
            registers.join(", ")
        )
        .expect("a string takes all");
        // Every accumulator goes into one of the four result words.
        for (i, register) in registers.iter().enumerate() {
            let d = format!("%d{}", i % 4);
            writeln!(body, "shf.l.wrap.b32 {d}, {d}, {d}, 5;\nxor.b32 {d}, {d}, {register};")
                .expect("a string takes all");
        }
        hopper(case("wgmma", body, self.input, Output::Quad))
    }
}

pub(super) fn wgmmas(v: &mut Vec<Case>) {
    let bf16 = || Product {
        types: ["f32", "bf16", "bf16"],
        n: 64,
        swizzle: Swizzle::Bytes128,
        transposed: [false; 2],
        a_in_registers: false,
        scale: [1, 1],
        accumulate: true,
        input: Input::SmallBf16,
    };
    let swizzles = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];
    for n in (8..=256).step_by(8) {
        v.push(Product { n, ..bf16() }.case());
    }
    for swizzle in swizzles {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            for a_in_registers in [false, true] {
                if a_in_registers && transposed[0] {
                    continue;
                }
                v.push(Product { n: 136, swizzle, transposed, a_in_registers, accumulate: false, ..bf16() }.case());
            }
        }
    }
    for (types, input) in [
        (["f32", "f16", "f16"], Input::SmallF16),
        (["f16", "f16", "f16"], Input::SmallF16),
        (["f32", "tf32", "tf32"], Input::SmallF32),
        (["f32", "e4m3", "e4m3"], Input::SmallE4m3),
        (["f32", "e5m2", "e5m2"], Input::SmallE5m2),
        (["f32", "e4m3", "e5m2"], Input::SmallFp8),
        (["f32", "e5m2", "e4m3"], Input::SmallFp8),
        (["f16", "e4m3", "e4m3"], Input::SmallE4m3),
    ] {
        for a_in_registers in [false, true] {
            v.push(Product { types, input, a_in_registers, ..bf16() }.case());
        }
        v.push(Product { types, input, n: 96, swizzle: Swizzle::Bytes32, ..bf16() }.case());
    }
    for scale in [[-1, 1], [1, -1], [-1, -1]] {
        v.push(Product { scale, ..bf16() }.case());
        v.push(Product { scale, a_in_registers: true, ..bf16() }.case());
    }
}
