//! What changes time and not values: cache policies, and the order of grids.

use super::super::{Case, Definition, Input, Output};
use super::{case, hopper};

/// A policy in `%lc`, of each kind that there is.
const POLICIES: [&str; 5] = [
    "createpolicy.fractional.L2::evict_last.b64 %lc;",
    "createpolicy.fractional.L2::evict_first.b64 %lc, 0.5;",
    "createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 %lc, 0.25;",
    "createpolicy.range.global.L2::evict_last.L2::evict_first.b64 %lc, [%in], 1024, 4096;",
    "mov.b64 %lc, 0x14f0000000000000;",
];

/// All cases of this file.
pub(super) fn hints(v: &mut Vec<Case>) {
    // `%lb` is the address of the thread's own 16 bytes of the output.
    let own = "mul.wide.u32 %lb, %i, 16;\nadd.s64 %lb, %lb, %out;\n";
    let rows: Definition = |inputs, t| {
        let [x, y] = [inputs[t][0], inputs[t][1]];
        [x as u32, (x >> 32) as u32, y as u32, (y >> 32) as u32]
    };
    let mut add = |body: String, definition: Definition| {
        let case = hopper(case("cache policies", body, Input::Bits, Output::Quad));
        v.push(Case { definition: Some(definition), ..case });
    };
    for policy in POLICIES {
        add(
            format!(
                "{policy}\nld.global.L2::cache_hint.v2.u32 {{%d0, %d1}}, [%in], %lc;\n\
                 ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {{%d2, %d3}}, [%in+8], %lc;"
            ),
            rows,
        );
    }
    add(
        format!(
            "{}\n{own}st.global.L2::cache_hint.v2.u32 [%lb], {{%a, %b}}, %lc;\n\
             atom.global.add.L2::cache_hint.u32 %d0, [%lb], %c, %lc;\nred.global.add.L2::cache_hint.u32 [%lb+4], %c, %lc;\n\
             ld.global.v2.u32 {{%d1, %d2}}, [%lb];",
            POLICIES[0]
        ),
        |inputs, t| {
            let [a, b, c] = inputs[t].map(|w| w as u32);
            [a, a.wrapping_add(c), b.wrapping_add(c), 0]
        },
    );
    add(
        format!(
            "{}\nmov.u32 %t0, %tid.x;\nshl.b32 %t1, %t0, 4;\nmov.u32 %t2, buffer;\nadd.s32 %t1, %t1, %t2;\n\
             cp.async.ca.shared.global.L2::cache_hint [%t1], [%in], 8, %lc;\n\
             cp.async.ca.shared.global.L2::cache_hint [%t1+8], [%in+8], 8, 4, %lc;\ncp.async.wait_all;\n\
             ld.shared.v4.u32 {{%d0, %d1, %d2, %d3}}, [%t1];",
            POLICIES[0]
        ),
        |inputs, t| [inputs[t][0] as u32, (inputs[t][0] >> 32) as u32, inputs[t][1] as u32, 0],
    );
    let case = hopper(case(
        "dependent grids",
        "griddepcontrol.wait;\ngriddepcontrol.launch_dependents;\nadd.u32 %d0, %a, %b;",
        Input::Bits,
        Output::B32,
    ));
    v.push(Case { reference: Some(|a, b, _| (a as u32).wrapping_add(b as u32) as u64), ..case });
}
