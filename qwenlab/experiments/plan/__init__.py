"""From a spec file to a plan: the parameter combinations that will be run."""
