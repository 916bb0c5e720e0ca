//! Colours, markers and dashes: who is who in every picture.

use plotters::style::RGBColor;

/// A colour on a white page, and the one that takes its place where the reader's page is dark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ink {
    pub(crate) light: (u8, u8, u8),
    dark: (u8, u8, u8),
}

impl Ink {
    const fn new(light: u32, dark: u32) -> Ink {
        const fn split(rgb: u32) -> (u8, u8, u8) {
            ((rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8)
        }
        Ink { light: split(light), dark: split(dark) }
    }

    pub(crate) fn rgb(self) -> RGBColor {
        let (r, g, b) = self.light;
        RGBColor(r, g, b)
    }
}

// Text has a contrast of at least 4.5 to its background, and lines of at least 3, on both pages.
pub(crate) const PAPER: Ink = Ink::new(0xFFFFFF, 0x14171C);
pub(crate) const TEXT: Ink = Ink::new(0x1A1D21, 0xECEFF3);
pub(crate) const FAINT_TEXT: Ink = Ink::new(0x565D66, 0xA9B1BB);
pub(crate) const GRID: Ink = Ink::new(0xE3E6EA, 0x2C323A);
pub(crate) const AXIS: Ink = Ink::new(0x8A929C, 0x727B86);
pub(crate) const LIMIT: Ink = Ink::new(0xB00020, 0xFF6B7D);

/// The shape at each measured point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    TriangleDown,
}

/// Length of dashes and of the gaps between them.
pub(crate) type Dash = (f64, f64);

/// How one implementation looks in every picture. Ours are solid lines with filled markers, peers are dashed with hollow ones, so
/// that they differ in black and white too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Style {
    pub(crate) ink: Ink,
    /// `None` for what is no measurement.
    pub(crate) marker: Option<Marker>,
    pub(crate) filled: bool,
    /// `None` is solid.
    pub(crate) dash: Option<Dash>,
    /// Width of the line.
    pub(crate) width: f64,
}

/// Looks of the implementations that this version knows by name. Hues after Okabe and Ito, darkened until lines show on white.
const KNOWN: [(&str, Ink, Marker, Option<Dash>); 11] = [
    ("naive", Ink::new(0x6B7078, 0xA7AEB8), Marker::Diamond, None),
    ("v1", Ink::new(0x00805C, 0x2CC295), Marker::Triangle, None),
    ("v2", Ink::new(0x0067A8, 0x4DB3F0), Marker::Square, None),
    ("v3", Ink::new(0xD14900, 0xFF8A3D), Marker::Circle, None),
    ("torch cudnn", Ink::new(0x1F2328, 0xE6EAF0), Marker::Circle, Some((9.0, 4.0))),
    ("torch flash", Ink::new(0xA8327F, 0xF08CCB), Marker::Square, Some((5.0, 3.0))),
    ("torch efficient", Ink::new(0x8A6100, 0xE3B341), Marker::Triangle, Some((3.0, 3.0))),
    ("torch math", Ink::new(0x2A86A8, 0x7FD0EA), Marker::Diamond, Some((1.5, 3.0))),
    ("triton flex", Ink::new(0x5B3FA0, 0xB9A1FF), Marker::TriangleDown, Some((13.0, 4.0))),
    ("FlashAttention-3", Ink::new(0x00707F, 0x45C8D8), Marker::Diamond, Some((11.0, 2.0))),
    ("FlashAttention-4", Ink::new(0xB3261E, 0xFF8E86), Marker::Triangle, Some((7.0, 2.0))),
];

/// For names that are not in [`KNOWN`].
const OTHERS: [(Ink, Marker); 4] = [
    (Ink::new(0x7A5200, 0xD9A441), Marker::TriangleDown),
    (Ink::new(0x3C6E00, 0x9CD65A), Marker::Diamond),
    (Ink::new(0x8C2F39, 0xFF9AA2), Marker::Square),
    (Ink::new(0x37507A, 0x9DB8E8), Marker::Triangle),
];

impl Style {
    /// The look of a ceiling.
    pub(crate) const fn ceiling(dash: Option<Dash>) -> Style {
        Style { ink: AXIS, marker: None, filled: false, dash, width: 1.8 }
    }

    /// The look of the implementation called `name`, `index`-th of the record.
    pub(crate) fn of(name: &str, peer: bool, index: usize) -> Style {
        let known = KNOWN.iter().find(|known| known.0 == name);
        let (ink, marker, dash) = known.map_or_else(
            || {
                let (ink, marker) = OTHERS[index % OTHERS.len()];
                (ink, marker, peer.then_some((7.0, 3.0)))
            },
            |&(_, ink, marker, dash)| (ink, marker, dash),
        );
        Style { ink, marker: Some(marker), filled: !peer, dash, width: if peer { 1.6 } else { 2.2 } }
    }
}

/// Rules that change every colour of a picture where the page around it is dark. Attribute selectors, because the drawing library
/// writes colours as attributes, which any rule overrides.
pub(crate) fn dark_rules(scope: &str) -> String {
    let inks = [PAPER, TEXT, FAINT_TEXT, GRID, AXIS, LIMIT];
    let all = inks.into_iter().chain(KNOWN.map(|known| known.1)).chain(OTHERS.map(|other| other.0));
    let hex = |(r, g, b): (u8, u8, u8)| format!("#{r:02X}{g:02X}{b:02X}");
    all.map(|ink| {
        let (light, dark) = (hex(ink.light), hex(ink.dark));
        format!("{scope}[fill=\"{light}\"]{{fill:{dark}}}{scope}[stroke=\"{light}\"]{{stroke:{dark}}}")
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance by WCAG 2.
    fn luminance((r, g, b): (u8, u8, u8)) -> f64 {
        let linear = |c: u8| {
            let c = f64::from(c) / 255.0;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
    }

    fn contrast(a: (u8, u8, u8), b: (u8, u8, u8)) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn everything_stands_out_from_both_papers() {
        let both = |ink: Ink| contrast(ink.light, PAPER.light).min(contrast(ink.dark, PAPER.dark));
        for ink in [TEXT, FAINT_TEXT, LIMIT] {
            assert!(both(ink) >= 4.5, "{ink:?}");
        }
        for ink in KNOWN.map(|known| known.1).into_iter().chain(OTHERS.map(|other| other.0)).chain([AXIS]) {
            assert!(both(ink) >= 3.0, "{ink:?}");
        }
    }

    #[test]
    fn no_two_implementations_look_alike_without_colour() {
        for (i, a) in KNOWN.iter().enumerate() {
            for b in &KNOWN[i + 1..] {
                assert!((a.2, a.3) != (b.2, b.3), "{} and {}", a.0, b.0);
                assert_ne!(a.1, b.1, "{} and {}", a.0, b.0);
            }
        }
        let names = KNOWN.map(|known| known.0);
        for name in names {
            let ours = name == "naive" || name.starts_with('v');
            assert_eq!(Style::of(name, true, 0).dash.is_some(), !ours, "{name}");
        }
    }
}
