/**
 * Keeps bytes of an image that others have changed out of its scratch copies. A write that covers only a part of a unit takes the
 * rest of it from the image. If the image has changed since it was opened, these may be any bytes, and nobody could tell later.
 */
import { ImageError } from '../../errors.js'
import type { Extent } from '../../formats/driver.js'
import type { Reservation, WritableDriver } from '../../formats/writable.js'
import type { ChangeWatch } from '../opening/change-watch.js'
import { PassingDriver } from './passing-driver.js'

export class BaseGuard extends PassingDriver {
  /** Whether the image was asked for since the last reservation. */
  private wasAsked = false

  /** @param path of the image */
  constructor(
    driver: WritableDriver,
    private readonly watch: ChangeWatch,
    private readonly path: string,
  ) {
    super(driver)
  }

  override lookup(offset: number, length: number): Extent {
    const extent = this.driver.lookup(offset, length)
    if (extent.kind === 'parent') this.wasAsked = true
    return extent
  }

  override reserve(offset: number, length: number): Reservation {
    const reservation = this.driver.reserve(offset, length)
    this.wasAsked = false
    return reservation
  }

  /** Looks after the bytes were read: then it does not matter when the image changes. */
  override link(reservation: Reservation): void {
    if (this.wasAsked && this.watch.look()) {
      this.driver.cancel(reservation)
      const what = 'another program has changed the image, and this write needs a part of it'
      throw new ImageError('CORRUPT', what, { path: this.path })
    }
    this.driver.link(reservation)
  }
}
