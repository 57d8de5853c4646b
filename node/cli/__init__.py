"""The `noded` command: verbs in `main`, `network` and `state`, text in the `render` files; talks to the daemon through `client`, with no event loop."""
