//! Telling other files from safetensors.

use anyhow::{Result, anyhow};
use safetensors::{SafeTensorError, SafeTensors};

/// How files of other programs begin, and what they are.
const OTHERS: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "a zip archive, such as torch.save (.pt) and numpy.savez (.npz) write"),
    (b"\x80\x02", "a Python pickle, such as torch.save wrote in older versions"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x93NUMPY", "an array of numpy.save (.npy)"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
];

/// Reads a file, and tells one that ends too early from one that is no safetensors file at all.
///
/// # Errors
/// What it is instead.
pub(super) fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>> {
    // The length of the header comes first, and could have these bytes by chance: a file that can be read is one.
    SafeTensors::deserialize(bytes).map_err(|error| {
        if let Some((_, what)) = OTHERS.iter().find(|(start, _)| bytes.starts_with(start)) {
            return anyhow!(
                "it is {what}; safetensors is needed, which `safetensors.torch.save_file` and its like write"
            );
        }
        match error {
            SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => {
                anyhow!("the file is truncated: it ends inside its header, after {} bytes", bytes.len())
            }
            SafeTensorError::MetadataIncompleteBuffer => anyhow!(
                "the file is truncated or has bytes too many: its {} bytes are not what its header announces",
                bytes.len()
            ),
            error => anyhow!("not a safetensors file: {error}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_named_however_short_they_are() {
        for (start, what) in OTHERS {
            for length in [0, 20, 1000] {
                let file = [start, &vec![0; length][..]].concat();
                let message = parse(&file).unwrap_err().to_string();
                assert!(message.starts_with(&format!("it is {what}; safetensors is needed")), "{message}");
            }
        }
        assert!(parse(b"\x50\0\0\0\0\0\0\0{").unwrap_err().to_string().contains("truncated"));
    }
}
