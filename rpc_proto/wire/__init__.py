"""What goes over the wire: frames, the option handshake, headers, codecs and typed values."""
