"""The exporters that ship with the lab, one module each. Every module here defines ``EXPORTER``, an Exporter."""
