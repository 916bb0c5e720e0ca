//! Division by a number that the host knows.

/// A number to divide by, with a multiplication instead of a division, for which GPUs have no instruction.
///
/// Granlund and Montgomery, "Division by Invariant Integers using Multiplication", 1994, section 4: with `s = ceil(log2(value))`, the
/// multiplier `ceil(2^(31 + s) / value)` fits 32 bits, and its error is too small to change the quotient of a number below `2^31`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divisor {
    /// The number, from 1 to `2^31`.
    pub value: u32,
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    /// Divides by `value`, from 1 to `2^31`.
    pub const fn new(value: u32) -> Divisor {
        assert!(value >= 1 && value <= 1 << 31, "a divisor from 1 to 2^31");
        let shift = u32::BITS - (value - 1).leading_zeros();
        let multiplier = (1_u64 << (31 + shift)).div_ceil(value as u64) as u32;
        Divisor { value, multiplier, shift }
    }

    /// Quotient of `number`, which is below `2^31 - value`, rounded up.
    #[inline(always)]
    pub const fn ceil(&self, number: u32) -> u32 {
        self.split(number + self.value - 1).0
    }

    /// Quotient and remainder of `number`, which is below `2^31`.
    #[inline(always)]
    pub const fn split(&self, number: u32) -> (u32, u32) {
        let quotient = ((((2 * number) as u64 * self.multiplier as u64) >> 32) as u32) >> self.shift;
        (quotient, number - quotient * self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotients_are_exact() {
        let numbers = [0, 1, 2, 3, 131, 132, 1 << 20, (1 << 30) - 1, 1 << 30, (1 << 31) - 2, (1 << 31) - 1];
        for value in (1..2000).chain([12345, 65535, 65537, (1 << 30) + 1, (1 << 31) - 1, 1 << 31]) {
            let divisor = Divisor::new(value);
            // Around multiples of the divisor, where a quotient changes.
            let edges = numbers.iter().flat_map(|n| [n / value * value, (n / value * value).wrapping_sub(1)]);
            for number in numbers.iter().copied().chain(edges).filter(|&number| number < 1 << 31) {
                assert_eq!(divisor.split(number), (number / value, number % value), "{number} by {value}");
            }
        }
    }
}
