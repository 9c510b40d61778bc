"""One frozen base, and what is attached to it: LoRA, SO(8) gates, a decision head."""

import logging

# PEFT imports bitsandbytes where it is installed, which then tells of kernels that it could have
# downloaded; nothing here downloads code.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
