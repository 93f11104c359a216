"""The probe of expert routing."""
