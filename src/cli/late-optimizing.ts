/**
 * Makes V8 optimize only what runs for long. A command whose work is done by the kernel and by libraries gains nothing from
 * optimized code, and the threads that optimize take processors from it.
 */
import v8 from 'node:v8'

/** How many bytes of code a function runs before V8 considers it; by default 66 KiB. */
const BUDGET_BYTES = 2 * 2 ** 20

export function optimizeLate(): void {
  v8.setFlagsFromString(`--interrupt-budget=${BUDGET_BYTES}`)
}
