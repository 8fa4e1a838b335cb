"""Everything that crosses a trust boundary: messages, tensor frames, signed envelopes."""
