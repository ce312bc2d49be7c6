"""Working sets driven from the host, for concrete large dense problems on CPUs."""
