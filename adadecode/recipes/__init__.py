"""How the embedded demo was built, and the files of settings that ship: the demo's run and the sweeps."""
