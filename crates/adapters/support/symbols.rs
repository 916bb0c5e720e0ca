//! The symbols of the program that runs.

use object::{Object, ObjectSymbol};

/// Fails where this program, which the adapter is linked into, defines a symbol with the name of a driver function (`cuInit`): another
/// library of the process that links the driver would find ours instead.
pub(crate) fn assert_none_of_the_driver(adapter: &str) {
    let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let symbols = file.symbols().chain(file.dynamic_symbols()).filter(|symbol| symbol.is_definition());
    let names: Vec<_> = symbols.map(|symbol| symbol.name().unwrap().to_owned()).collect();
    assert!(names.iter().any(|name| name.contains(adapter)), "stripped: its symbols say nothing");
    let is_of_the_driver =
        |name: &str| name.strip_prefix("cu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
    let found: Vec<_> = names.iter().filter(|name| is_of_the_driver(name)).collect();
    assert!(found.is_empty(), "{found:?}");
}
