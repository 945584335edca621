//! Retention against a brute force that looks at every instant, and its borders one by one.
