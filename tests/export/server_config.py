"""The part of Triton Inference Server's ``model_config.proto`` that our configuration files use, with its field numbers."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

_SCALARS = {"string": 9, "int32": 5, "int64": 3, "uint64": 4}
_ENUMS = {
    "DataType": {"TYPE_INVALID": 0, "TYPE_UINT8": 2, "TYPE_FP16": 10, "TYPE_FP32": 11, "TYPE_BF16": 14},
    "Kind": {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3},
}
_MESSAGES = {
    "ModelInput": "name:string=1 data_type:DataType=2 dims:int64*=3",
    "ModelOutput": "name:string=1 data_type:DataType=2 dims:int64*=3",
    "ModelInstanceGroup": "kind:Kind=4 count:int32=2 profile:string*=5",
    "ModelDynamicBatching": "max_queue_delay_microseconds:uint64=2",
    "InputMapEntry": "key:string=1 value:string=2",
    "OutputMapEntry": "key:string=1 value:string=2",
    "Step": "model_name:string=1 model_version:int64=2 input_map:InputMapEntry*=3 output_map:OutputMapEntry*=4",
    "ModelEnsembling": "step:Step*=1",
    "ModelParameter": "string_value:string=1",
    "ParametersEntry": "key:string=1 value:ModelParameter=2",
    "ModelConfig": "name:string=1 platform:string=2 max_batch_size:int32=4 input:ModelInput*=5 output:ModelOutput*=6 "
    "instance_group:ModelInstanceGroup*=7 dynamic_batching:ModelDynamicBatching=11 ensemble_scheduling:ModelEnsembling=15 "
    "parameters:ParametersEntry*=14",
}


def _build() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="model_config_subset.proto", package="inference", syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for label, number in values.items():
            enum.value.add(name=label, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for declaration in fields.split():
            label, rest = declaration.split(":")
            kind, number = rest.split("=")
            field = message.field.add(name=label, number=int(number), label=3 if kind.endswith("*") else 1)
            kind = kind.rstrip("*")
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = 14 if kind in _ENUMS else 11
                field.type_name = f".inference.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


ModelConfig = _build()


def parse(text: str) -> Any:
    """A configuration file as the server reads it; an unknown field or value is an error."""
    return text_format.Parse(text, ModelConfig())
