"""The wire format: frames, the option handshake, headers, codecs and typed values."""
