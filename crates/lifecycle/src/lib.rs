//! The VM driver: run, pause, save, restore.
