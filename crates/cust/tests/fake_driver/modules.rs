//! Modules, functions and launches.

use crate::streams::{self, Node};
use crate::*;
use std::ffi::CStr;

driver! {
    fn cuModuleLoadDataEx(module: *mut *mut String, ptx: *const c_char, options: c_uint, keys: *const c_uint, values: *const *mut c_void) {
        need_context!();
        get!(streams::refuse_in_capture());
        let text = CStr::from_ptr(ptx).to_str().expect("PTX is text");
        let entry = text.split_once(".entry ").map(|(_, rest)| rest.split('(').next().expect("a name").to_owned());
        let entry = entry.filter(|name| !std::env::var("FAKE_REJECT").is_ok_and(|rejected| rejected == *name));
        // First the error log and its size, then what was asked for.
        assert_eq!((*keys, *keys.add(1)), (5, 6));
        let Some(entry) = entry else {
            let message = c"ptxas error: line 7".to_bytes_with_nul();
            assert!(message.len() <= *values.add(1) as usize);
            std::ptr::copy_nonoverlapping(message.as_ptr(), (*values).cast::<u8>(), message.len());
            return INVALID_PTX;
        };
        for option in 2..options as usize {
            log(format!("option {} {}", *keys.add(option), *values.add(option) as usize));
        }
        // Long enough for other threads to want the same kernel.
        std::thread::sleep(std::time::Duration::from_millis(50));
        log(format!("load {entry}"));
        *module = Box::into_raw(Box::new(entry));
        0
    }
    /// A cubin is `cubin NAME` here.
    fn cuModuleLoadData(module: *mut *mut String, image: *const c_char) {
        need_context!();
        let text = CStr::from_ptr(image).to_str().expect("text");
        let Some(entry) = text.strip_prefix("cubin ") else { return INVALID_IMAGE };
        log(format!("load {entry}"));
        *module = Box::into_raw(Box::new(entry.to_owned()));
        0
    }
    fn cuModuleUnload(module: *mut String) { need_context!(); log(format!("unload {module}", module = &*module)); 0 }
    fn cuModuleGetFunction(function: *mut *mut String, module: *mut String, name: *const c_char) {
        if CStr::from_ptr(name).to_str() != Ok(&*module) {
            return NOT_FOUND;
        }
        *function = module;
        0
    }
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, _function: *mut String) { *value = 100 + attribute as c_int; 0 }
    fn cuFuncSetAttribute(function: *mut String, attribute: c_uint, value: c_int) {
        // 8: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES.
        if attribute != 8 || value > 227 * 1024 {
            return INVALID_VALUE;
        }
        log(format!("shared {function} {value}", function = &*function));
        0
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, _function: *mut String, threads: c_int, shared: usize) {
        *blocks = (2048 / threads).min((227 * 1024 / shared.max(1)) as c_int);
        0
    }
    fn cuLaunchKernel(
        function: *mut String, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
        stream: usize, params: *const *const u8, extra: *const c_void,
    ) {
        need_context!();
        assert_eq!((gy, gz, by, bz, extra), (1, 1, 1, 1, std::ptr::null()));
        launch(&*function, format!("grid {gx} block {bx} shared {shared}"), stream, params)
    }
    /// Left out of the build that stands for a driver before CUDA 11.8.
    #[cfg(not(lacks_clusters))]
    fn cuLaunchKernelEx(config: *const Config, function: *mut String, params: *const *const u8, extra: *const c_void) {
        need_context!();
        assert_eq!(extra, std::ptr::null());
        let Config { grid, block, shared, stream, attributes, count } = *config;
        let attributes: Vec<_> = (0..count as usize)
            .map(|i| {
                let Attribute { id, value, .. } = *attributes.add(i);
                match id {
                    2 => format!("cooperative {}", value[0]),
                    4 => format!("cluster {:?}", &value[..3]),
                    6 => format!("programmatic {}", value[0]),
                    _ => panic!("attribute {id}"),
                }
            })
            .collect();
        launch(&*function, format!("grid {grid:?} block {block:?} shared {shared} {}", attributes.join(" ")), stream, params)
    }
    #[cfg(not(lacks_clusters))]
    fn cuOccupancyMaxActiveClusters(clusters: *mut c_int, _function: *mut String, config: *const Config) {
        let Config { attributes, count, .. } = *config;
        assert_eq!((count, (*attributes).id), (1, 4));
        let [x, y, z] = [0, 1, 2].map(|axis| (*attributes).value[axis]);
        *clusters = 132 / (x * y * z) as c_int;
        0
    }
    /// Writes the map down and makes one that starts with the address. Left out of the build that stands for a driver without it.
    #[cfg(not(lacks_tensor_maps))]
    fn cuTensorMapEncodeTiled(
        map: *mut [u64; 16], data_type: c_uint, rank: c_uint, address: u64, extents: *const [u64; 4], strides: *const [u64; 3],
        box_extents: *const [u32; 4], element_strides: *const [u32; 4], interleave: c_uint, swizzle: c_uint, l2_promotion: c_uint,
        fill: c_uint,
    ) {
        need_context!();
        // What the driver checks of rank, alignments and sizes.
        assert_eq!((rank, *element_strides), (4, [1; 4]));
        assert_eq!((map.addr() % 64, address % 16), (0, 0));
        assert!((*extents).iter().all(|&extent| (1..=1 << 32).contains(&extent)));
        assert!((*strides).iter().all(|&stride| stride > 0 && stride % 16 == 0 && stride < 1 << 40));
        assert!((*box_extents).iter().all(|extent| (1..=256).contains(extent)));
        // Zeros outside, 128-byte swizzle and L2 sectors.
        assert_eq!((interleave, swizzle, l2_promotion, fill), (0, 3, 2, 0));
        log(format!(
            "map type {data_type} address {address:#x} extents {:?} strides {:?} box {:?}", *extents, *strides, *box_extents
        ));
        if std::env::var_os("FAKE_MAP_FAILS").is_some() {
            return INVALID_VALUE;
        }
        *map = [0; 16];
        (*map)[0] = address;
        0
    }
}

/// `CUlaunchConfig`.
#[cfg(not(lacks_clusters))]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: usize,
    attributes: *const Attribute,
    count: c_uint,
}

/// `CUlaunchAttribute`.
#[cfg(not(lacks_clusters))]
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Attribute {
    id: c_uint,
    pad: c_uint,
    value: [c_uint; 16],
}

/// Writes a launch down, in the graph where the stream is captured.
///
/// # Safety
/// The kernel has parameters, and the first has 8 bytes.
unsafe fn launch(function: &str, extents: String, stream: usize, params: *const *const u8) -> u32 {
    // Structs start with an address: v1's and v2's with that of q, v3's with the map, which the fixture starts with it.
    // SAFETY: by this function's contract.
    let word = unsafe { (*params).cast::<u64>().read_unaligned() };
    let line = format!("launch {function} {extents} stream {stream} param {word:#x}");
    if get!(streams::captured(stream, || Node::Launch(line.clone()))) {
        return 0;
    }
    log(line);
    0
}
