//! Images that ringfence builds and keeps: the image store and the recipe for tiny.
