"""The edge: check what comes in, translate it, call the engine, translate the answer. Nothing is decided here."""
