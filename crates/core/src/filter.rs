//! Filters live in `mirror::filter`; see there.
