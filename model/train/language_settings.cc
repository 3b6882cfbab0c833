#include "model/train/language_settings.h"

#include <stdexcept>

namespace llava {

namespace {

// What a new model is made of.
void ReadShape(Recipe& recipe, LanguageSettings& s) {
  s.tokenizer = recipe.Text("tokenizer", "", "folder of tokenizer.model");
  s.chat_template = recipe.Text("chat_template", "emoji", "built-in template of the dialogues");
  s.decoder.num_layers = recipe.Int("model.layers", 4, "decoder layers", 1, 256);
  s.decoder.hidden_size = recipe.Int("model.width", 128, "width of the decoder", 2, 1 << 16);
  s.decoder.num_heads = recipe.Int("model.heads", 4, "attention heads", 1, 1 << 10);
  s.decoder.num_kv_heads =
      recipe.Int("model.kv_heads", s.decoder.num_heads, "key and value heads", 1, 1 << 10);
  s.decoder.intermediate_size = recipe.Int("model.ffn", 384, "inner width", 1, 1 << 18);
  s.decoder.max_position_embeddings =
      recipe.Int("model.context", 2048, "longest sequence, tokens", 64, 1 << 20);
  s.decoder.tie_word_embeddings =
      recipe.Flag("model.tied", true, "one table for the words read and said");
  const int64_t width = s.decoder.hidden_size, heads = s.decoder.num_heads;
  if (width % (2 * heads) != 0 || heads % s.decoder.num_kv_heads != 0) {
    throw std::invalid_argument("model.width " + std::to_string(width) +
                                " must be a multiple of twice model.heads " +
                                std::to_string(heads) + ", and that one of model.kv_heads " +
                                std::to_string(s.decoder.num_kv_heads));
  }
  s.decoder.head_dim = width / heads;
}

}  // namespace

LanguageSettings LanguageSettings::From(Recipe& recipe) {
  LanguageSettings s;
  const std::string start = recipe.Text(
      "start", "",
      "folder of a language model to go on from, with start_text_map; its shape, tokenizer "
      "and template stay, without settings of their own; empty: from nothing");
  if (start.empty()) {
    ReadShape(recipe, s);
  } else {
    s.start = std::make_shared<const LanguageCheckpoint>(OpenLanguage(start));
    s.start_text_map =
        recipe.Text("start_text_map", "", "file of that model's vectors of rows and columns");
    s.decoder = s.start->config.decoder;
  }
  s.tower = recipe.Text("tower", "",
                        "tower whose features the fresh projector will read; opened when the model "
                        "is published, so it may still be in training");
  s.text_map = recipe.Text("text_map", "",
                           "file for the vectors of rows and columns, written when the model is "
                           "published; empty: none");
  if (s.tower.empty() || (s.start ? s.start_text_map : s.tokenizer).empty()) {
    throw std::invalid_argument(
        s.start ? "to go on from a model, the settings \"start_text_map\" and \"tower\" are needed"
                : "a language model needs the settings \"tokenizer\" and \"tower\"");
  }
  s.image_mode = recipe.Choice<ImageMode>("image_mode", "crop",
                                          {{"crop", ImageMode::kCrop}, {"pad", ImageMode::kPad}},
                                          "how pictures are made square");
  s.steps = recipe.Int("steps", 8000, "optimizer steps", 1);
  s.learning_rate = recipe.Number("learning_rate", 2e-3, "peak");
  s.weight_decay = recipe.Number("weight_decay", 0.02, "of matrices; vectors have none");
  s.map_noise = recipe.Number("map_noise", 0.1, "how much maps are disturbed", 0, 1);
  s.lessons = LessonSettings::From(recipe);
  s.evaluated_scenes =
      recipe.Int("evaluation.scenes", 256, "held-out scenes of an evaluation", 1, 1 << 20);
  s.greedy_questions =
      recipe.Int("evaluation.greedy", 0, "questions of each type answered freely in an evaluation");
  return s;
}

}  // namespace llava
