/** Opening an image for `vimgfs check` and having it checked, or repaired, by its format. */
import { ImageInUse, printable } from '../errors.js'
import type { CheckOptions } from '../formats/check/report.js'
import type { Format } from '../formats/format.js'
import type { CheckRequest, Found } from '../image/check.js'
import { complain } from './output.js'

export type Checked = Found & { readonly format: Format }

/** Returns undefined where the format has nothing to check. Throws ImageError, SystemError. */
export async function checkImage(
  name: string,
  request: CheckRequest,
  options: CheckOptions,
): Promise<Checked | undefined> {
  const { ImageCheck } = await import('../image/check.js')
  const { whenReleased } = await import('../fs/release.js')
  const image = await whenReleased(() => ImageCheck.open(name, request), say).catch(error => {
    throw onceItHasEnded(error)
  })
  if (!image) return undefined
  try {
    for (const warning of image.warnings) say(warning)
    return { format: image.format, ...(await image.run(options)) }
  } finally {
    image.close()
  }
}

const say = (line: string) => complain(`vimgfs: ${printable(line)}\n`)

/** The hints of an image in use are about mounts. */
function onceItHasEnded(error: unknown): unknown {
  if (!(error instanceof ImageInUse)) return error
  const context = { ...error.context, hint: 'check it once that has ended' }
  return new ImageInUse(error.message, error.holders, context)
}
