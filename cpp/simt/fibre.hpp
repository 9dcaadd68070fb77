// Fibres: stacks of their own that one thread switches between. Known to AddressSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

// Saves the callee-saved registers of the running stack and takes up another one.
#if defined(__x86_64__)
using Context = void*;
extern "C" void nz_simt_switch(void** save, void* load);
__asm__(
    ".text\n"
    ".weak nz_simt_switch\n"
    ".type nz_simt_switch,@function\n"
    "nz_simt_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size nz_simt_switch, .-nz_simt_switch\n");
inline void switch_context(Context& save, Context& load) { nz_simt_switch(&save, load); }
#else
using Context = ucontext_t;
inline void switch_context(Context& save, Context& load) { swapcontext(&save, &load); }
#endif

class Fibre {
  public:
#if defined(__SANITIZE_ADDRESS__)
    static constexpr std::size_t stack_size = 256 * 1024;
#else
    static constexpr std::size_t stack_size = 64 * 1024;
#endif

    Fibre() : stack_(static_cast<char*>(std::aligned_alloc(64, stack_size))) {}

    // Makes the fibre one that starts with `entry` when it is next resumed. `entry` must not return, but leave().
    void prepare(void (*entry)()) {
#if defined(__x86_64__)
        void** top = reinterpret_cast<void**>(stack_.get() + stack_size);
        *--top = nullptr;  // where a call would leave its return address: 8 bytes off a multiple of 16
        *--top = reinterpret_cast<void*>(entry);
        for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
        context_ = top;
#else
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_.get();
        context_.uc_stack.ss_size = stack_size;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
#endif
        shadow_ = nullptr;
    }

    // Runs the fibre until it pauses or leaves.
    void resume() {
        start_switch(&caller_shadow_, stack_.get(), stack_size);
        switch_context(caller_, context_);
        finish_switch(caller_shadow_);
    }

    // Called on the fibre itself, first thing.
    void entered() { finish_switch(nullptr); }

    // Goes back to the caller of resume(), to go on from here with the next one.
    void pause() {
        start_switch(&shadow_, caller_stack_, caller_size_);
        switch_context(context_, caller_);
        finish_switch(shadow_);
    }

    // Goes back for good.
    void leave() {
        start_switch(nullptr, caller_stack_, caller_size_);
        switch_context(context_, caller_);
    }

  private:
    void start_switch([[maybe_unused]] void** shadow, [[maybe_unused]] const void* stack,
                      [[maybe_unused]] std::size_t size) {
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_start_switch_fiber(shadow, stack, size);
#endif
    }
    void finish_switch([[maybe_unused]] void* shadow) {
#if defined(__SANITIZE_ADDRESS__)
        const void* stack = nullptr;
        std::size_t size = 0;
        __sanitizer_finish_switch_fiber(shadow, &stack, &size);
        // Whoever is switched to learns the stack that it came from: for the fibre that is its caller's.
        if (stack != stack_.get()) {
            caller_stack_ = stack;
            caller_size_ = size;
        }
#endif
    }

    struct Free {
        void operator()(char* stack) const { std::free(stack); }
    };

    std::unique_ptr<char, Free> stack_;
    Context context_{}, caller_{};
    void* shadow_ = nullptr;
    void* caller_shadow_ = nullptr;
    const void* caller_stack_ = nullptr;
    std::size_t caller_size_ = 0;
};

}  // namespace simt
