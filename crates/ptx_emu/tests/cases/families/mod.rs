//! Cases that come in families: every pair of types of a conversion, every operation of an atomic, every layout of a matrix
//! product. The bodies are made here; `written.rs` holds those that are written out.

mod cluster;
mod copies;
mod hints;
mod numbers;
mod products;
mod rare;
mod warp;

use super::{Case, Compare, Input, Output};

/// All cases of the families.
pub(crate) fn all() -> Vec<Case> {
    let mut v = Vec::new();
    numbers::arithmetic(&mut v);
    numbers::conversions(&mut v);
    warp::atomics(&mut v);
    warp::warps(&mut v);
    warp::memory(&mut v);
    warp::matrices(&mut v);
    copies::bulk_copies(&mut v);
    products::wgmmas(&mut v);
    hints::hints(&mut v);
    cluster::clusters(&mut v);
    rare::rare(&mut v);
    v
}

/// A case that is compared bit for bit.
fn case(family: &'static str, body: impl Into<String>, input: Input, output: Output) -> Case {
    Case {
        family,
        body: body.into().into(),
        input,
        output,
        compare: Compare::Bits,
        sm: "sm_80",
        reference: None,
        definition: None,
        tensor: None,
        cluster: 0,
    }
}

fn hopper(case: Case) -> Case {
    Case { sm: "sm_90a", ..case }
}

/// Puts the shared address of the thread's own 16 bytes into `%t1`, after storing `{%b, %c, %a, %b}` there.
const OWN_SHARED: &str = "mov.u32 %t0, %tid.x;\nshl.b32 %t1, %t0, 4;\nmov.u32 %t2, buffer;\nadd.s32 %t1, %t1, %t2;\n\
                          st.shared.v4.u32 [%t1], {%b, %c, %a, %b};\n";
