"""rpc-proto demo: a tour through the library, with servers of its own."""
