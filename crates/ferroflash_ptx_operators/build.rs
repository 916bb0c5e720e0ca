//! Makes and packs the PTX of what models compute around attention.

fn main() {
    ptx_pack::main(ptx_pack::Unit::Operators);
}
