"""The towers that see and hear: training modules in the published layout."""
