"""Methods that act at decoding time, one file a method; how they are spelled: `satisfice.intervention`."""
