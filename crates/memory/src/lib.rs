//! Guest RAM: one host window, page-granular access, per-page code and dirty tracking.
