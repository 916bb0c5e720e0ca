//! Operators of the values that programs are written with.

use super::op::{Binary, IntBinary, Logic, Op, Unary};
use super::scope::{Bool, Float, Int};
use std::ops::{Add, BitAnd, BitOr, Div, Mul, Neg, Not, Sub};

impl<'p> Not for Bool<'p> {
    type Output = Bool<'p>;
    fn not(self) -> Bool<'p> {
        self.scope.condition(Op::Not(self.id))
    }
}

impl<'p> BitAnd for Bool<'p> {
    type Output = Bool<'p>;
    fn bitand(self, other: Bool<'p>) -> Bool<'p> {
        self.scope.condition(Op::Logic(Logic::And, [self.id, other.id]))
    }
}

impl<'p> BitOr for Bool<'p> {
    type Output = Bool<'p>;
    fn bitor(self, other: Bool<'p>) -> Bool<'p> {
        self.scope.condition(Op::Logic(Logic::Or, [self.id, other.id]))
    }
}

impl<'p> Neg for Float<'p> {
    type Output = Float<'p>;
    fn neg(self) -> Float<'p> {
        self.unary(Unary::Neg)
    }
}

impl<'p> Neg for Int<'p> {
    type Output = Int<'p>;
    fn neg(self) -> Int<'p> {
        self.scope.int_constant(0) - self
    }
}

/// Arithmetic of two values, and of a value and a plain number on either side.
macro_rules! arithmetic {
    ($value:ident, $plain:ty, $constant:ident, $kind:ident: $($operator:ident $function:ident)*) => {$(
        impl<'p> $operator for $value<'p> {
            type Output = $value<'p>;
            fn $function(self, other: $value<'p>) -> $value<'p> {
                self.binary($kind::$operator, other)
            }
        }

        impl<'p> $operator<$plain> for $value<'p> {
            type Output = $value<'p>;
            fn $function(self, other: $plain) -> $value<'p> {
                self.binary($kind::$operator, self.scope.$constant(other))
            }
        }

        impl<'p> $operator<$value<'p>> for $plain {
            type Output = $value<'p>;
            fn $function(self, other: $value<'p>) -> $value<'p> {
                other.scope.$constant(self).binary($kind::$operator, other)
            }
        }
    )*};
}

arithmetic! { Float, f32, constant, Binary: Add add Sub sub Mul mul Div div }
arithmetic! { Int, i32, int_constant, IntBinary: Add add Sub sub Mul mul }
