//! What programs that name candle-flash-attn find: its functions, with the arguments that its version 0.11.1 takes.
#![allow(clippy::type_complexity, reason = "signatures are what is tested")]

use candle_core::{Result, Tensor};
use candle_flash_attn as flash;

type T<'a> = &'a Tensor;
type Window = Option<usize>;

/// This compiles, or there is a function that the original has not, or one with other arguments.
#[test]
fn functions_have_the_arguments_of_the_original() {
    let _: fn(T, T, T, f32, bool) -> Result<Tensor> = flash::flash_attn;
    let _: fn(T, T, T, f32, Window, Window) -> Result<Tensor> = flash::flash_attn_windowed;
    let _: fn(T, T, T, T, f32, bool) -> Result<Tensor> = flash::flash_attn_alibi;
    let _: fn(T, T, T, T, f32, Window, Window) -> Result<Tensor> = flash::flash_attn_alibi_windowed;
    let _: fn(T, T, T, Option<T>, f32, Window, Window, f32) -> Result<Tensor> =
        flash::flash_attn_alibi_windowed_softcap;
    let _: fn(T, T, T, T, T, usize, usize, f32, bool) -> Result<Tensor> = flash::flash_attn_varlen;
    let _: fn(T, T, T, T, T, usize, usize, f32, Window, Window) -> Result<Tensor> = flash::flash_attn_varlen_windowed;
    let _: fn(T, T, T, T, T, T, Option<T>, usize, usize, f32, Window, Window, usize, Option<f32>) -> Result<Tensor> =
        flash::flash_attn_varlen_paged_windowed;
    let _: fn(T, T, T, T, T, T, usize, usize, f32, bool) -> Result<Tensor> = flash::flash_attn_varlen_alibi;
    let _: fn(T, T, T, T, T, T, usize, usize, f32, Window, Window) -> Result<Tensor> =
        flash::flash_attn_varlen_alibi_windowed;
    let _: fn(T, T, T, Option<T>, T, T, usize, usize, f32, Window, Window, f32) -> Result<Tensor> =
        flash::flash_attn_varlen_alibi_windowed_softcap;
}

#[test]
fn functions_of_v3_have_the_arguments_of_the_original() {
    let _: fn(T, T, T, f32, bool, bool) -> Result<Tensor> = flash::v3::flash_attn;
    let _: fn(T, T, T, f32, Window, Window, bool) -> Result<Tensor> = flash::v3::flash_attn_windowed;
    let _: fn(T, T, T, T, f32, bool, bool) -> Result<Tensor> = flash::v3::flash_attn_alibi;
    let _: fn(T, T, T, T, f32, Window, Window, bool) -> Result<Tensor> = flash::v3::flash_attn_alibi_windowed;
    let _: fn(T, T, T, T, T, usize, usize, f32, bool, bool) -> Result<Tensor> = flash::v3::flash_attn_varlen;
    let _: fn(T, T, T, T, T, usize, usize, f32, Window, Window, bool) -> Result<Tensor> =
        flash::v3::flash_attn_varlen_windowed;
    let _: fn(T, T, T, T, T, T, usize, usize, f32, bool, bool) -> Result<Tensor> = flash::v3::flash_attn_varlen_alibi;
    let _: fn(T, T, T, T, T, T, usize, usize, f32, Window, Window, bool) -> Result<Tensor> =
        flash::v3::flash_attn_varlen_alibi_windowed;
}

/// The operation of the original, with its fields.
#[test]
fn the_operation_has_the_fields_of_the_original() {
    let op = flash::FlashAttn {
        softmax_scale: 0.5,
        alibi_slopes: None,
        window_size_left: None,
        window_size_right: Some(0),
        softcap: None,
    };
    assert_eq!(candle_core::CustomOp3::name(&op), "flash-attn");
}
