"""A small recommendation backend: what a newsroom's own service would do with Coldframe, in 200 lines."""
