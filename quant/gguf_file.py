from quant.gguf_reader import GgufFile as GgufFile
from quant.gguf_writer import GgufTensor as GgufTensor
from quant.gguf_writer import write_gguf as write_gguf
