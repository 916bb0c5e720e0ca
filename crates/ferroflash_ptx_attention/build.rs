//! Makes and packs the PTX of attention.

fn main() {
    ptx_pack::main(ptx_pack::Unit::Attention);
}
