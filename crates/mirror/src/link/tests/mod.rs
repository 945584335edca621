mod bytes;
mod pair;
