//! The words that a case reads: corners of their type, and random bits.

use super::Input;

fn pick<T: Copy>(list: &[T], r: u64) -> T {
    list[(r >> 8) as usize % list.len()]
}

pub(super) fn word(input: Input, r: u64) -> u64 {
    let special = r & 3 == 0;
    let near_one = r & 3 == 1;
    let bits = r.rotate_left(32);
    match input {
        Input::Bits if special => pick(
            &[
                0,
                1,
                2,
                31,
                32,
                33,
                63,
                64,
                0x7f,
                0x80,
                0x7fff,
                0x8000,
                0x7fff_ffff,
                0x8000_0000,
                0xffff_ffff,
                1 << 63,
                !0,
            ],
            r,
        ),
        Input::Bits => bits,
        Input::F32 if special => pick(
            &[
                0,
                1 << 31,
                1,
                0x807f_ffff,
                0x0080_0000,
                0x3f80_0000,
                0xbf80_0000,
                0x7f7f_ffff,
                0x7f80_0000,
                0xff80_0000,
                0x7fc0_0000,
            ],
            r,
        ),
        Input::F32 if near_one => (bits & 0x8fff_ffff) | 0x3800_0000,
        Input::F32 => bits & 0xffff_ffff,
        Input::F64 if special => pick(
            &[
                0,
                1 << 63,
                1,
                0x7fe0_0000_0000_0000,
                0x3ff0_0000_0000_0000,
                0x41df_ffff_ffc0_0000,
                0xc1e0_0000_0000_0000,
            ],
            r,
        ),
        // No infinity and no NaN: payloads of f64 are unspecified.
        Input::F64 if near_one || bits >> 52 & 0x7ff == 0x7ff => (bits & 0x800f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000,
        Input::F64 => bits,
        Input::F16 | Input::Bf16 => {
            let one = |r: u64| {
                let h = r as u16;
                let list: [u16; 8] = if input == Input::F16 {
                    [0, 0x8000, 1, 0x83ff, 0x3c00, 0x7bff, 0x7c00, 0x7e00]
                } else {
                    [0, 0x8000, 1, 0x807f, 0x3f80, 0x7f7f, 0x7f80, 0x7fc0]
                };
                (if special { pick(&list, r) } else { h }) as u64
            };
            one(bits) | one(bits >> 20) << 16
        }
        Input::SmallF16 => {
            let one = |v: u64| [0u64, 0x3c00, 0x4000, 0x4200, 0x4400, 0xbc00, 0xc000, 0xc200][v as usize & 7];
            one(bits) | one(bits >> 5) << 16
        }
        Input::SmallBf16 => {
            let one = |v: u64| [0u64, 0x3f80, 0x4000, 0x4040, 0x4080, 0xbf80, 0xc000, 0xc040][v as usize & 7];
            one(bits) | one(bits >> 5) << 16
        }
        Input::SmallE4m3 | Input::SmallE5m2 | Input::SmallFp8 => {
            let list: [u64; 8] = match input {
                // 0, 1, 2, 3, 4, -1, -2, -3.
                Input::SmallE4m3 => [0, 0x38, 0x40, 0x44, 0x48, 0xb8, 0xc0, 0xc4],
                Input::SmallE5m2 => [0, 0x3c, 0x40, 0x42, 0x44, 0xbc, 0xc0, 0xc2],
                // 1 and 2 of e4m3, which are 0.5 and 2 of e5m2, and 1 of e5m2, which is 1.5 of e4m3.
                _ => [0, 0x38, 0x40, 0x3c, 0, 0xb8, 0xc0, 0xbc],
            };
            (0..4).map(|i| list[(bits >> (5 * i)) as usize & 7] << (8 * i)).sum()
        }
        Input::ModerateF16 | Input::ModerateBf16 => {
            let one = |r: u64| {
                // A sign, an exponent from 2^-4 to 2, any mantissa.
                let (bits, bias) = if input == Input::ModerateF16 { (10, 15) } else { (7, 127) };
                (r & 1) << 15 | (bias - 4 + (r >> 1) % 6) << bits | ((r >> 8) & ((1 << bits) - 1))
            };
            one(bits) | one(bits >> 20) << 16
        }
        Input::SmallF32 => (((bits & 15) as f32) - 8.0).to_bits() as u64,
        Input::Moderate => {
            let x = ((bits >> 8) as u32 as f64 / u32::MAX as f64) * 8.0 - 4.0;
            (x as f32).to_bits() as u64
        }
    }
}
