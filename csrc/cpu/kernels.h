#pragma once
// Every kernel of one instruction set, and their table. Included by one file per instruction set.
#include "confusion_matrix_kernel.h"
#include "loss_kernel.h"
#include "pseudo_label_kernel.h"
#include "region_mix_kernel.h"
#include "upsample_kernel.h"

namespace udas {
inline namespace UDAS_ISA {

constexpr cpu::Kernels kKernels{
    LossTable<AllLosses>::kernels, run_upsample_backward, run_upsample, run_pseudo_label,
    run_confusion_matrix,          run_region_mix};

}  // namespace UDAS_ISA
}  // namespace udas
