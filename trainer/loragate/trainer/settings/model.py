"""[model]: from which weights training starts."""

from loragate.trainer.settings.section import Section


class ModelSettings(Section, frozen=True):
    # What `loragate model prepare` prepared: its name, folder, or hub id.
    base: str = "smollm2-135m-instruct"
    # An adapter version to go on from, such as acme/support@v3.
    continue_from: str = ""
    # A file with a chat template that replaces the model's own. It becomes part of the contract.
    chat_template: str = ""
