/** Opening an image for `vimgfs check` and having it checked, or repaired, by its format. */
import { ImageInUse, MountError, printable } from '../errors.js'
import type { CheckOptions } from '../formats/check/report.js'
import type { Format } from '../formats/format.js'
import type { CheckRequest } from '../image/checking/check.js'
import type { Found } from '../image/checking/check-run.js'
import { complain } from './output.js'
import type { ProgressOptions } from './progress.js'

export type Checked = Found & { readonly format: Format }

/** The format of an image that has nothing to check. */
export interface Unchecked {
  readonly format: Format
  readonly after?: undefined
}

/** Throws ImageError, SystemError. */
export async function checkImage(
  name: string,
  request: CheckRequest,
  options: CheckOptions,
): Promise<Checked | Unchecked> {
  const { formatOfImage, ImageCheck } = await import('../image/checking/check.js')
  const { whenReleased } = await import('../fs/mounting/release.js')
  const format = formatOfImage(name, request.format)
  const open = () => ImageCheck.open(name, { ...request, format: format.name })
  const image = await whenReleased(open, say).catch(error => {
    throw onceItHasEnded(error)
  })
  if (!image) return { format }
  const stop = new SharedArrayBuffer(4)
  const interrupt = () => {
    Atomics.store(new Int32Array(stop), 0, 1)
  }
  try {
    for (const warning of image.warnings) say(warning)
    // A repair that is interrupted ends as in a power cut.
    if (request.repair === undefined) process.once('SIGINT', interrupt)
    return { format, ...(await image.run(options, undefined, stop)) }
  } finally {
    process.off('SIGINT', interrupt)
    image.close()
  }
}

/**
 * Does the same through the server that has the image mounted, by its name or its mount point. Returns undefined if none has.
 * Throws MountError.
 */
export async function checkMounted(
  name: string,
  shown: ProgressOptions,
): Promise<Checked | Unchecked | undefined> {
  const { ask, ifMounted } = await import('./mounted.js')
  const { receivedCheck } = await import('../control/received-check.js')
  const { findFormat } = await import('../formats/registry.js')
  const checked = await ifMounted(name, async server => {
    const answer = receivedCheck(await ask(server, { do: 'check' }, shown))
    const format = findFormat(answer.format)
    if (!format) throw new MountError(`${name}: its format is unknown to this version`)
    return answer.result ? { format, after: answer.result } : { format }
  })
  return checked?.result
}

const say = (line: string) => complain(`vimgfs: ${printable(line)}\n`)

/** The hints of an image in use are about mounts. */
function onceItHasEnded(error: unknown): unknown {
  if (!(error instanceof ImageInUse)) return error
  const context = { ...error.context, hint: 'check it once that has ended' }
  return new ImageInUse(error.message, error.holders, context)
}
