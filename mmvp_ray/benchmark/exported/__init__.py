"""Files that exports carry along as they are: they run inside other harnesses and import nothing from mmvp_ray."""
