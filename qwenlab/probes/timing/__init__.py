"""The probe of time per part of each layer."""
