//! ptx_emu
