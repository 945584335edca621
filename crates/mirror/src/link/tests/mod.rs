mod bytes;
mod packing;
mod pair;
