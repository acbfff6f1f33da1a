// Scores events with an exported ensemble: reads `features`, `sample` and `EventId` from binary files of the current
// folder, and writes `fold`, `routed`, `ensemble` and `spread` beside them. Arguments: events, features.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

template <typename T>
std::vector<T> read(const std::string &name, int64_t count) {
    std::vector<T> values(count);
    std::ifstream(name + ".bin", std::ios::binary).read(reinterpret_cast<char *>(values.data()), count * sizeof(T));
    return values;
}

template <typename T>
void write(const std::string &name, const Ort::Value &tensor) {
    const auto count = tensor.GetTensorTypeAndShapeInfo().GetElementCount();
    const auto *values = reinterpret_cast<const char *>(tensor.GetTensorData<T>());
    std::ofstream(name + ".bin", std::ios::binary).write(values, count * sizeof(T));
}

int main(int, char **arguments) {
    const int64_t events = std::atoll(arguments[1]), count = std::atoll(arguments[2]);
    auto features = read<float>("features", events * count);
    auto sample = read<int64_t>("sample", events), event = read<int64_t>("EventId", events);

    Ort::Env env;
    Ort::Session session(env, "ensemble.onnx", Ort::SessionOptions{nullptr});
    auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    const std::array<int64_t, 2> shape{events, count};
    std::array<Ort::Value, 3> inputs{
        Ort::Value::CreateTensor<float>(memory, features.data(), features.size(), shape.data(), 2),
        Ort::Value::CreateTensor<int64_t>(memory, sample.data(), sample.size(), shape.data(), 1),
        Ort::Value::CreateTensor<int64_t>(memory, event.data(), event.size(), shape.data(), 1)};
    const std::array<const char *, 3> names{"features", "sample", "EventId"};
    const std::array<const char *, 4> wanted{"fold", "routed", "ensemble", "spread"};
    const auto found =
        session.Run(Ort::RunOptions{nullptr}, names.data(), inputs.data(), names.size(), wanted.data(), wanted.size());
    write<int64_t>(wanted[0], found[0]);
    for (std::size_t kind = 1; kind < wanted.size(); ++kind) write<float>(wanted[kind], found[kind]);
}
