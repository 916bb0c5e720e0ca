//! ferroflash_cli
